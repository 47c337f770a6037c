"""Numbers that the four papers print, to stand beside ours."""

#: MiVE (arXiv 2605.14664), Table 1: attention mask ratio of "the person in the video" by depth (share of
#: the layers; 0 is the first layer), mean over 100 clips; no spread is printed. The first column's
#: heading is missing in the text that we have, and "first layer" is our reading of it.
MIVE_TABLE_1 = {
    "depth": (0.0, 1 / 6, 1 / 3, 1 / 2, 2 / 3, 5 / 6, 1.0),
    "Qwen3-VL-8B": (0.366, 0.296, 0.253, 0.197, 0.226, 0.177, 0.228),
    "GLM-4.6V": (0.333, 0.243, 0.264, 0.256, 0.301, 0.290, 0.270),
}
