"""Numbers that the four papers print, to stand beside ours."""

#: MiVE (arXiv 2605.14664), Table 1: attention mask ratio of "the person in the video" by depth (share of
#: the layers; 0 is the first layer), mean over 100 clips; no spread is printed. The first column's
#: heading is missing in the text that we have, and "first layer" is our reading of it.
MIVE_TABLE_1 = {
    "depth": (0.0, 1 / 6, 1 / 3, 1 / 2, 2 / 3, 5 / 6, 1.0),
    "Qwen3-VL-8B": (0.366, 0.296, 0.253, 0.197, 0.226, 0.177, 0.228),
    "GLM-4.6V": (0.333, 0.243, 0.264, 0.256, 0.301, 0.290, 0.270),
}

#: GenCompositor (arXiv 2509.02460), its ablation table: harmonisation on HYouTube (PSNR in dB, SSIM, CLIP,
#: LPIPS), then VBench in percent (subject, background, motion, aesthetics). No spread is printed.
GENCOMPOSITOR_ABLATION = {
    "full": (42.0010, 0.9487, 0.9713, 0.0385, 89.75, 93.43, 98.69, 52.00),
    "cross-attention": (19.8940, 0.8015, 0.9341, 0.1535, 88.85, 92.21, 98.34, 48.85),
    "no background branch": (40.0099, 0.9378, 0.9709, 0.0432, 88.77, 89.62, 97.25, 51.51),
    "no luminance augmentation": (39.8040, 0.9295, 0.9629, 0.0520, 88.00, 89.97, 98.30, 50.73),
    "no mask inflation": (41.8553, 0.9422, 0.9701, 0.0409, 89.72, 91.62, 98.28, 50.87),
}
