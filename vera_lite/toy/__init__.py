"""The playground: procedural worlds that every system can learn on a laptop, and their words.

There are two. In the *world of shapes* (:mod:`~vera_lite.toy.world`, ``edits``, ``compositions``, drawn by
``drawing``) rings, squares, circles and triangles move over patterns; the shipped models, the notebooks and
the studies use it. In the *world of things on places* (:mod:`~vera_lite.toy.scenes`, ``scene_edits``,
``scene_compositions``, drawn by ``things`` and ``sprites``) sixty well-known things move over photographs and
landscapes, and held-out pairs show what a model understands. Words, dialogues and the toy vision-language
model serve both. When models of the second world ship, the first world goes; shapes that a study needs become
sprites.
"""
