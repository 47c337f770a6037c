"""Views for notebooks, which need the extra ``notebooks``.

Import each from its module, e.g. ``vera_lite.widgets.layer_viewer``.
"""
