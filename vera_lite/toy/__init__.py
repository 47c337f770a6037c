"""The playground: procedural worlds that every system can learn on a laptop, and the words that they use.

There are two. In the *world of shapes* (:mod:`~vera_lite.toy.world`, ``edits``, ``compositions``, drawn by
``drawing``) rings, squares, circles and triangles move over patterns: the shipped models, the notebooks and
the studies use it. In the *world of things on places* (:mod:`~vera_lite.toy.scenes`, ``scene_edits``,
``scene_compositions``, drawn by ``things`` and ``sprites``) sixty things that people recognise move over
photographs and landscapes, and held-out pairs show what a model understands. Words, dialogues and the toy
vision-language model serve both. Once models of the second world ship, the first goes; where a study needs
plain shapes, they become sprites.
"""
