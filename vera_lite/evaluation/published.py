"""Numbers that the four papers print, for comparison with ours."""

#: MiVE (arXiv 2605.14664), Table 1: attention mask ratio of "the person in the video" by depth (share of
#: the layers; 0 is the first layer), mean over 100 clips; no spread is printed. Our copy of the text lacks
#: the first column's heading; "first layer" is our reading.
MIVE_TABLE_1 = {
    "depth": (0.0, 1 / 6, 1 / 3, 1 / 2, 2 / 3, 5 / 6, 1.0),
    "Qwen3-VL-8B": (0.366, 0.296, 0.253, 0.197, 0.226, 0.177, 0.228),
    "GLM-4.6V": (0.333, 0.243, 0.264, 0.256, 0.301, 0.290, 0.270),
}

#: The axes of MiVE's tables, 0 to 10 from a large model: instruction adherence, content consistency, temporal
#: smoothness, and three whose full names our copy of the text lacks.
MIVE_AXES = ("IA", "CC", "TS", "PR", "VA", "SC")

#: MiVE, Table 3: how the context reaches the video, on its 30 "complex" portrait clips. One run each; no
#: spread is printed. The decoupled encoders are T5 and CLIP, the others read all in one VLM.
MIVE_TABLE_3 = {
    "decoupled": (6.76, 6.10, 5.88, 5.92, 5.87, 7.45),
    "dual_cross": (8.51, 8.24, 7.68, 7.88, 7.42, 8.03),
    "fused_cross": (8.53, 8.22, 7.87, 7.91, 8.08, 9.00),
    "self": (9.23, 8.05, 8.27, 8.18, 8.09, 9.22),
}

#: The same, Table 4: which layers of the VLM are read. No layer between was tried.
MIVE_TABLE_4 = {
    "first": (8.03, 7.16, 6.85, 6.98, 6.65, 8.44),
    "last": (9.04, 8.28, 8.03, 7.89, 8.11, 9.11),
    "first and last": (9.23, 8.05, 8.27, 8.18, 8.09, 9.22),
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

#: RVEDiT (arXiv 2605.24674), Table 2: OpenVE-Bench under its Qwen judge, 1 to 100; overall, then local
#: change, local remove, local add, global style. One run each; no spread is printed. The tables disagree
#: about what was run: the full model's routing depth is 17 in Table 2b, 15 in Tables 2c and 3; depth "25"
#: of Table 2 is 22 in Table 3, with equal numbers; there are 34 blocks, where the backbone has 30. The
#: weight of all tables is 0.75, the appendix's 0.1. "Without both" is 71.77 in Table 3. L_s = 0, every
#: token for every block, was not run.
RVEDIT_ABLATION = {
    "full": (77.42, 85.02, 73.11, 70.29, 81.29),
    "without routing (L_s = L)": (74.76, 84.59, 71.02, 65.64, 77.80),
    "without alignment (lambda = 0)": (76.06, 84.94, 73.48, 65.74, 80.11),
    "without both": (71.71, 83.88, 56.18, 67.06, 79.96),
    "L_s = 8": (74.13, 86.48, 67.95, 63.50, 78.61),
    "L_s = 25": (69.83, 80.55, 63.87, 58.98, 76.05),
    "lambda = 0.25": (75.09, 83.44, 71.85, 65.65, 79.45),
    "lambda = 0.5": (72.75, 82.94, 64.67, 65.27, 78.13),
    "lambda = 1": (73.37, 81.76, 71.18, 61.61, 78.93),
}

#: The same, Table 3, over all categories: instruction compliance, content fidelity, visual quality. Without
#: alignment the first is higher than in the full model.
RVEDIT_AXES = {
    "full": (73.76, 78.22, 80.29),
    "without routing (L_s = L)": (73.07, 74.72, 76.52),
    "without alignment (lambda = 0)": (74.04, 76.05, 78.13),
    "without both": (57.28, 78.30, 79.73),
    "L_s = 8": (71.89, 73.69, 76.83),
    "L_s = 25": (63.92, 72.06, 73.61),
    "lambda = 0.25": (72.95, 74.62, 77.73),
    "lambda = 0.5": (69.12, 72.74, 76.39),
    "lambda = 1": (72.59, 72.41, 75.11),
}
