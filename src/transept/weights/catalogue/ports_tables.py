"""What others published, as tables; `ports.py` makes the entries. Scores are percent."""

# PaddleViT README: top-1 and top-5 at 224, 224 distilled, 384 distilled.
XCIT_PADDLEVIT = {
    "nano_12_p16": ((69.96, 89.76), (72.32, 90.86), (75.46, 92.70)),
    "nano_12_p8": ((73.91, 92.17), (76.32, 93.09), (77.66, 93.92)),
    "tiny_12_p16": ((77.14, 93.71), (78.58, 94.29), (80.94, 95.41)),
    "tiny_12_p8": ((79.69, 95.05), (81.21, 95.61), (82.30, 96.20)),
    "tiny_24_p16": ((79.45, 94.88), (80.46, 95.22), (82.56, 96.28)),
    "tiny_24_p8": ((81.89, 95.97), (82.57, 96.17), (83.62, 96.67)),
    "small_12_p16": ((81.97, 95.81), (83.33, 96.41), (84.71, 97.12)),
    "small_12_p8": ((83.33, 96.49), (84.24, 96.87), (85.05, 97.27)),
    "small_24_p16": ((82.58, 96.01), (83.88, 96.73), (85.10, 97.31)),
    "small_24_p8": ((83.83, 96.63), (84.86, 97.19), (85.52, 97.56)),
    "medium_24_p16": ((82.64, 95.98), (83.88, 96.73), (85.82, 97.59)),
    "medium_24_p8": ((83.74, 96.40), (85.07, 97.27), (85.82, 97.59)),
    "large_24_p16": ((82.90, 95.89), (84.92, 97.13), (85.67, 97.54)),
    "large_24_p8": ((84.39, 96.66), (85.40, 97.40), (85.99, 97.69)),
}
XCIT_PADDLEVIT_FOLDER = "https://drive.google.com/drive/folders/1QCeKP4jXwMakw-lcdlVQWtmmE0Xuj3D8?usp=sharing"
XCIT_MINDCV = (  # path without its ending, tag, top-1, top-5
    ("xcit/xcit_tiny_12_p16_224-1b1c9301", "mindcv_in1k", 77.67, 93.79),
    (
        "xcit/xcit_tiny_12_p16_224-bd90776e-910v2",
        "mindcv_910v2_in1k",
        77.27,
        93.56,
    ),
)
XCIT_DINO = ("small_12_p16", "small_12_p8", "medium_24_p16", "medium_24_p8")
# README of the adversarially trained models: Google Drive file, accuracy under AutoAttack, and without attack.
XCIT_ROBUST = {
    ("s", "eps4_in1k"): ("1wbx18o4l_ECyEYo9eyHnIYPlSNRMpO-D", 41.78, 72.34),
    ("m", "eps4_in1k"): ("184utgGfgh6m_GDBe_mETWf0HmxksGCHH", 45.24, 74.04),
    ("l", "eps4_in1k"): ("154l0cWMtBMK64yG7gn3fzoTQSATHR8H5", 47.60, 73.76),
    ("s", "eps8_in1k"): ("1lFcXruv6lUz9XqxvXTzyA_7YLprPZq2q", 25.00, 63.46),
    ("m", "eps8_in1k"): ("1Nw86jzlXLEGbFQZtd39i0Mampwh2ZAFv", 26.58, 67.80),
    ("l", "eps8_in1k"): ("1UPDBDkirsxUGBEDrznJrTZ0JR173nMlv", 28.74, 69.24),
    ("s", "cifar10"): ("1hu7Z4LhR4OOL3gmbHuT9ljRTSKIxGbPs", 56.14, 90.06),
    ("m", "cifar10"): ("1yan2zUNA6s6zDc0MOkfgCr3ctjWcQEI0", 57.27, 91.30),
    ("l", "cifar10"): ("1NWI77UiSD5nOx6dQgvIyPRYQof-8ke-y", 57.58, 91.73),
    ("s", "cifar100"): ("13vFwvVWEESfWWpoicPhD08HtzYszeyUr", 32.19, 67.34),
    ("m", "cifar100"): ("1YXnGsY3yvvaMucMwyfhDHIUchOSungj2", 34.21, 69.21),
    ("l", "cifar100"): ("1Sg4BQ5pBdlR_M41VDxOlYxCl1_It8elL", 35.08, 70.76),
    ("s", "flowers102"): ("1XHCbdj5vXUybofNmNd5a2LGQeVxITCpE", 47.91, 82.86),
    ("s", "caltech101"): ("1l_wdzgXI5lE6RVOtZvIzaPOMfoL6a1GJ", 61.74, 87.59),
}
XCIT_BIRDER = (  # path without its ending, first digits of the SHA-256
    (
        "nano_12_p16",
        "xcit_nano12_p16_il-common/resolve/main/xcit_nano12_p16_il-common",
        "f0b1d9b6",
    ),
    ("nano_12_p8", "xcit_nano12_p8_il-common", "fe142496"),
)

CAIT_PADDLEVIT = {  # PaddleViT README: top-1, top-5, Google Drive file, Baidu share and its access code
    "xxs24_224": (78.38, 94.32, "1LKsQUr824oY4E42QeUEaFt41I8xHNseR", "1YIaBLopKIK5_p7NlgWHpGA", "j9m8"),
    "xxs36_224": (79.75, 94.88, "1zZx4aQJPJElEjN5yejUNsocPsgnd_3tS", "1pdyFreRRXUn0yPel00-62Q", "nebg"),
    "xxs24_384": (80.97, 95.64, "1J27ipknh_kwqYwR0qOqE9Pj3_bTcTx95", "1uYSDzROqCVT7UdShRiiDYg", "2j95"),
    "xxs36_384": (82.20, 96.15, "13IvgI3QrJDixZouvvLWVkPY0J6j0VYwL", "1GafA8B6T3h_vtmNNq2HYKg", "wx5d"),
    "s24_224": (83.45, 96.57, "1sdCxEw328yfPJArf6Zwrvok-91gh7PhS", "1BPsAMEcrjtnbOnVDQwZJYw", "m4pn"),
    "xs24_384": (84.06, 96.89, "1zKL6cZwqmvuRMci-17FlKk-lA-W4RVte", "1w10DPJvK8EwhOCm-tZUpww", "scsv"),
    "s24_384": (85.05, 97.34, "1klqBDhJDgw28omaOpgzInMmfeuDa7NAi", "1-aNO6c7Ipm9x1hJY6N6G2g", "dnp7"),
    "s36_384": (85.45, 97.48, "1m-55HryznHbiUxG38J2rAa01BYcjxsRZ", "1-uWg-JHLEKeMukFFctoufg", "e3ui"),
    "m36_384": (86.06, 97.73, "1WJjaGiONX80KBHB3YN8mNeusPs3uDhR2", "1aZ9bEU5AycmmfmHAqZIaLA", "r4hu"),
    "m48_448": (86.49, 97.75, "1lJSP__dVERBNFnp7im-1xM3s_lqEe82-", "179MA3MkG2qxFle0K944Gkg", "imk5"),
}
CAIT_PADDLEVIT_OWN = (78.24, 96.26, "11BHchbYKAyw3IBccLGKokIdGYF12BVi3", "1RsCSHclSLGLPzXG5wtAwSw", "b6u3")
"""Of xxs24_224, trained by PaddleViT."""
CAIT_PPIM = {  # number and name of the file
    "xxs24_224": ("f104732e10e64c48b2848a78b7fa5db45d27a8eed0754c04b367d0708e7242ea", "CaiT_XXS24_224.pdparams"),
    "xxs36_224": ("af39ff4c2d6a48faa6dfb901b4fc1de4ae082d767bdc4deb824ae3b600823f1e", "CaiT_XXS36_224.pdparams"),
    "s24_224": ("4ecc9cecc89d43cbacf68a0ba14d58a1c9311cc86da3426ab5674fd79827a89a", "CaiT_S24_224.pdparams"),
    "xxs24_384": ("0e3615fb421a4301b08fcd675e063a101f4962bad59649f498912123aa0454a4", "CaiT_XXS24_384.pdparams"),
    "xxs36_384": ("b9f2db8a9c1c43ed971ea4779361c213512ef4c25b664216ab151b6ea60260a7", "CaiT_XXS36_384.pdparams"),
    "xs24_384": ("b36139e3caa4427eaaf51aa6de33c8b21f209eef97a44aacb4ec4fe136f93d85", "CaiT_XS24_384.pdparams"),
    "s24_384": ("4f57d1db346e435ebb81567399668d6181f054353f6c47e89e9f109b33d724c1", "CaiT_S24_384.pdparams"),
    "s36_384": ("445e36df9ec54b23a348bf977b81d92c6f54b31fb28b454d8742e056f99e6417", "CaiT_S36_384.pdparams"),
    "m36_384": ("4c73e395068747b9b5c8cdafc3d1b6122a7ed94e6e74481e836eb38c8c46a6eb", "CaiT_M36_384.pdparams"),
    "m48_448": ("70515fadc26f48d4b98b33304d8de7c7b955086688324aec8100e5df8a66b15d", "CaiT_M48_448.pdparams"),
}

CROSSFORMER_BIRDER = (  # path without its ending, tag, first digits of the SHA-256, image size
    (
        "crossformer_s_arabian-peninsula/resolve/main/crossformer_s_arabian-peninsula256px",
        "arabian_256",
        "24feadef",
        256,
    ),
    (
        "crossformer_s_arabian-peninsula/resolve/main/crossformer_s_arabian-peninsula",
        "arabian_384",
        "94936dfb",
        384,
    ),
)

CROSSVIT_MINDCV = (  # variant, path without its ending, tag, top-1 and top-5 where they are printed
    ("9", "crossvit/crossvit_9-e74c8e18", "mindcv_in1k", (73.56, 91.79)),
    ("15", "crossvit/crossvit_15-eaa43c02", "mindcv_in1k", ()),
    ("18", "crossvit/crossvit_18-ca0a2e43", "mindcv_in1k", ()),
    (
        "9",
        "crossvit/crossvit_9-32c69c96-910v2",
        "mindcv_910v2_in1k",
        (73.38, 91.51),
    ),
)
CROSSVIT_LUCID = {  # name there, first digits of the SHA-256
    "tiny": "f0213ad2",
    "small": "3b5a05f3",
    "base": "780bd01e",
    "9": "fc4a65ad",
    "15": "e3dc9964",
    "18": "7238e4b6",
}

BIRDER_MEAN = (0.5191, 0.5306, 0.4877)
BIRDER_STD = (0.2316, 0.2304, 0.2588)
