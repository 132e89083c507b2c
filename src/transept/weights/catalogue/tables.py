"""The released files, as tables: file names, hashes, share pages and printed scores. `records.py` makes the entries.

Scores are percent. A triple of XCiT classifiers stands for 224, 224 distilled and 384 distilled.
"""

XCIT_TOP1 = {  # official README
    "nano_12_p16": (69.9, 72.2, 75.4),
    "tiny_12_p16": (77.1, 78.6, 80.9),
    "tiny_24_p16": (79.4, 80.4, 82.6),
    "small_12_p16": (82.0, 83.3, 84.7),
    "small_24_p16": (82.6, 83.9, 85.1),
    "medium_24_p16": (82.7, 84.3, 85.4),
    "large_24_p16": (82.9, 84.9, 85.8),
    "nano_12_p8": (73.8, 76.3, 77.8),
    "tiny_12_p8": (79.7, 81.2, 82.4),
    "tiny_24_p8": (81.9, 82.6, 83.7),
    "small_12_p8": (83.4, 84.2, 85.1),
    "small_24_p8": (83.9, 84.9, 85.6),
    "medium_24_p8": (83.7, 85.1, 85.8),
    "large_24_p8": (84.4, 85.4, 86.0),
}
XCIT_DINO = {  # official README: file, k-NN, linear
    "small_12_p16": ("small_12_cp16", 76.0, 77.8),
    "small_12_p8": ("small_12_cp8", 77.1, 79.2),
    "medium_24_p16": ("medium_24_cp16", 76.4, 78.8),
    "medium_24_p8": ("medium_24_cp8", 77.9, 80.3),
}
XCIT_DENSE = {  # official READMEs: box and mask AP of Mask R-CNN, mIoU of Semantic FPN, of UPerNet (one scale)
    "tiny_12_p16": (42.7, 38.5, 38.1, 41.5),
    "tiny_12_p8": (44.5, 40.3, 39.9, 43.5),
    "small_12_p16": (45.3, 40.8, 43.9, 45.9),
    "small_12_p8": (47.0, 42.3, 44.2, 46.6),
    "small_24_p16": (46.5, 41.8, 44.6, 46.9),
    "small_24_p8": (48.1, 43.0, 47.1, 48.1),
    "medium_24_p16": (46.7, 42.0, 45.9, 47.6),
    "medium_24_p8": (48.5, 43.7, 46.9, 48.4),
}
XCIT_MMPRETRAIN = {  # MMPretrain 1.2.0: top-1, top-5, date and first digits of the SHA-256
    "nano_12_p16": (
        (70.35, 89.98, "20230213-ed776c38"),
        (72.36, 91.02, "20230213-fb247f7b"),
        (74.93, 92.42, "20230213-712db4d4"),
    ),
    "tiny_12_p16": (
        (77.21, 93.62, "20230213-82c547ca"),
        (78.70, 94.12, "20230213-d5fde0a3"),
        (80.58, 95.38, "20230213-00a20023"),
    ),
    "tiny_24_p16": (
        (79.47, 94.85, "20230213-366c1cd0"),
        (80.51, 95.17, "20230213-b472e80a"),
        (82.43, 96.20, "20230213-20e13917"),
    ),
    "small_12_p16": (
        (81.87, 95.77, "20230213-d36779d2"),
        (83.12, 96.41, "20230213-c95bbae1"),
        (84.74, 97.19, "20230213-ba36c982"),
    ),
    "small_24_p16": (
        (82.38, 95.93, "20230213-40febe38"),
        (83.70, 96.61, "20230213-130d7262"),
        (85.10, 97.32, "20230213-28fa2d0e"),
    ),
    "medium_24_p16": (
        (82.56, 95.82, "20230213-ad0aa92e"),
        (84.15, 96.82, "20230213-aca5cd0c"),
        (85.47, 97.49, "20230214-6c23a201"),
    ),
    "large_24_p16": (
        (82.97, 95.86, "20230214-d29d2529"),
        (84.61, 97.07, "20230214-4fea599c"),
        (85.78, 97.60, "20230214-bd515a34"),
    ),
    "nano_12_p8": (
        (73.80, 92.08, "20230213-3370c293"),
        (76.17, 93.08, "20230213-2f87d2b3"),
        (77.69, 94.09, "20230213-09d925ef"),
    ),
    "tiny_12_p8": (
        (79.75, 94.88, "20230213-8b02f8f5"),
        (81.26, 95.46, "20230213-f3f9b44f"),
        (82.46, 96.22, "20230213-a072174a"),
    ),
    "tiny_24_p8": (
        (81.70, 95.90, "20230213-4b9ba392"),
        (82.62, 96.16, "20230213-ad9c44b0"),
        (83.77, 96.72, "20230213-30d5e5ec"),
    ),
    "small_12_p8": (
        (83.21, 96.41, "20230213-9e364ce3"),
        (83.97, 96.81, "20230213-71886580"),
        (85.12, 97.31, "20230214-9f2178bc"),
    ),
    "small_24_p8": (
        (83.62, 96.51, "20230213-280ebcc7"),
        (84.68, 97.07, "20230213-f2773c78"),
        (85.57, 97.60, "20230214-57298eca"),
    ),
    "medium_24_p8": (
        (83.61, 96.23, "20230214-c362850b"),
        (85.00, 97.16, "20230214-625c953b"),
        (85.87, 97.61, "20230214-5db925e0"),
    ),
    "large_24_p8": (
        (84.23, 96.58, "20230214-08f2f664"),
        (85.14, 97.32, "20230214-8c092b34"),
        (86.13, 97.75, "20230214-9f718b1a"),
    ),
}
XCIT_PASSL = {  # PASSL README: top-1, top-5 at 224
    "nano_12_p16": (70.01, 89.82),
    "tiny_12_p16": (77.15, 93.72),
    "tiny_24_p16": (79.42, 94.86),
    "small_12_p16": (81.89, 95.83),
    "small_24_p16": (82.51, 95.97),
    "medium_24_p16": (82.67, 95.91),
    "large_24_p16": (82.89, 95.89),
    "nano_12_p8": (73.90, 92.13),
    "tiny_12_p8": (79.68, 95.04),
    "tiny_24_p8": (81.87, 95.97),
    "small_12_p8": (83.36, 96.51),
    "small_24_p8": (83.82, 96.65),
    "medium_24_p8": (83.73, 96.39),
    "large_24_p8": (84.42, 96.65),
}
XCIT_PASSL_DISTILLED = {"nano_12_p8": (77.28, 93.25)}

CAIT = {  # top-1 and its source: the official README, which lists no XXS models; those are the paper's (Table 3)
    "xxs24_224": (78.4, "paper"),
    "xxs24_384": (80.9, "paper"),
    "xxs36_224": (79.7, "paper"),
    "xxs36_384": (82.2, "paper"),
    "xs24_384": (84.1, "official README"),
    "s24_224": (83.5, "official README"),
    "s24_384": (85.1, "official README"),
    "s36_384": (85.4, "official README"),
    "m36_384": (86.1, "official README"),
    "m48_448": (86.5, "official README"),
}
CAIT_PASSL = {  # PASSL README: file, top-1, top-5
    "xs24_384": ("cait_x24_384", 84.06, 96.89),
    "s24_224": ("cait_s24_224", 83.45, 96.57),
    "s24_384": ("cait_s24_384", 85.05, 97.34),
    "s36_384": ("cait_s36_384", 85.45, 97.48),
    "m36_384": ("cait_m36_384", 86.06, 97.73),
    "m48_448": ("cait_m48_448", 86.49, 97.75),
}

CAT = {"tiny": (80.3, 95.0), "small": (81.8, 95.6), "base": (82.8, 96.1)}  # official README: top-1, top-5
CAT_DENSE = {  # official README: method, schedule, scores of small and of base
    "mask_rcnn_1x_ms": ((41.6, 38.6), (41.8, 38.7)),
    "fcos_1x": ((40.0,), (41.0,)),
    "atss_1x": ((42.0,), (42.5,)),
    "retinanet_1x": ((40.1,), (41.4,)),
    "cascade_rcnn_1x": ((44.1,), (44.8,)),
    "cascade_rcnn_1x_ms": ((45.2,), (46.3,)),
    "semantic_fpn_80k": ((40.6, 42.1), (42.2, 43.6)),
    "semantic_fpn_160k": ((42.2, 42.8), (43.2, 44.9)),
}

# Official READMEs: top-1, Google Drive file (none for ++), Baidu share and its access code.
CROSSFORMER = {
    "tiny": (81.5, "1YSkU9enn-ITyrbxLH13zNcBYvWSEidfq", "1M45YXZgVvp6Ew9DO8UhdlA", "nkju"),
    "small": (82.5, "1RAkigsgr33va0RZ85S2Shs2BhXYcS6U8", "1Xf4MXfb_soCnJFBeNDmoQQ", "fgqj"),
    "base": (83.4, "1bK8biVCi17nz_nkt7rBfio_kywUpllSU", "1f5dH__UGDXb-HoOPHT5p0A", "7md9"),
    "large": (84.0, "1zRWByVW_KIZ87NgaBkDIm60DAsGJErdG", "1YJLeHy_cxLBrZLklQBCA_A", "cc89"),
    "pp_small": (83.2, "", "1smc_kRoogd0Ig5vfqwuGTA", "crsf"),
    "pp_base": (84.2, "", "13XVP0ebtNcyRMmkl11ALYg", "crsf"),
    "pp_large": (84.7, "", "1xtPh-ndcOxRM7fPYYxIIRg", "crsf"),
    "pp_huge": (84.9, "", "1xtPh-ndcOxRM7fPYYxIIRg", "crsf"),
}
# The same pages of the dense models, with the scores by the method: box (and mask) AP, mIoU (and with more scales).
CROSSFORMER_DENSE = {
    ("small", "retinanet_fpn_1x_coco"): (
        (44.4,),
        "1OEEottS4fYGVZcPZG6WuBlKMK0tZLPZW",
        "1Ckrk3Z1uA65ve43_hL3ZFg",
        "ift3",
    ),
    ("base", "retinanet_fpn_1x_coco"): (
        (46.2,),
        "1TOuLLf_S4Ixo6COvaHQAocACR4NKKnGz",
        "1ESE7i1JpVjxZmB5ZTgXA5w",
        "hsd5",
    ),
    ("small", "mask_rcnn_fpn_1x_coco"): (
        (45.4, 41.4),
        "1qgO3-wnsJQw9Nj304AOj-TjVyadPPtvf",
        "1ytk95p-rjqI3UNEHaYqKKA",
        "4omu",
    ),
    ("base", "mask_rcnn_fpn_1x_coco"): (
        (47.2, 42.7),
        "1urkCa8Inss9CL1G1OgM4tWR5PSf6Ofn4",
        "1N_EGRLBuIXgQh6J0Oyh00g",
        "kjf4",
    ),
    ("small", "fpn_ade20k_40k"): ((46.4,), "1I-zpGG5rvkTtrTUnOF8Fx11yeb6pXGYi", "14K3gJS3UcnEZNwhTWHdsFg", "sn5h"),
    ("base", "fpn_ade20k_40k"): ((48.0,), "1EjAnRc8Sau0un1ymqDVhFebHPeBIjukK", "1eCYENrLZsxjAQKW3eAQeUA", "joi5"),
    ("large", "fpn_ade20k_40k"): ((49.1,), "12WS9lX9yR5skxdt3N2HE3b2EaDSMwUMY", "150b8-v1StaMHACIaM0hZVA", "6v5d"),
    ("small", "upernet_ade20k"): ((47.6, 48.4), "1VKu4D6oxYdO1VVILLMhOQy8oCxKGH5gx", "1MLcAOiJ22AFKUa6_t1psOQ", "wesb"),
    ("base", "upernet_ade20k"): ((49.7, 50.6), "1B8VTNeidrzlfsOkQUKgmX4m_UfCIm58i", "1311pBQluwJGiVdWY1WE16Q", "j061"),
    ("large", "upernet_ade20k"): ((50.4, 51.4), "1I9ph5MeCwlTF2PNCkIYMFXYsdywp9nU1", "1Yu8QB42hcbKNGQ46Wx_NaQ", "17ks"),
}

CROSSVIT = {  # top-1 of the paper; top-1 and top-5 of the same files by timm
    "tiny_240": (73.4, 73.352, 91.906),
    "small_240": (81.0, 81.036, 95.466),
    "base_240": (82.2, 82.212, 95.826),
    "9_240": (73.9, 73.994, 91.976),
    "15_240": (81.5, 81.522, 95.694),
    "18_240": (82.5, 82.390, 96.064),
    "9_dagger_240": (77.1, 76.990, 93.602),
    "15_dagger_240": (82.3, 82.302, 95.960),
    "18_dagger_240": (82.8, 82.494, 96.070),
    "15_dagger_408": (83.5, 83.842, 96.786),
    "18_dagger_408": (83.9, 84.198, 96.834),
}
CROSSVIT_PADDLEVIT = {  # PaddleViT README: top-1, top-5, Google Drive file, Baidu share and its access code
    "tiny_240": (73.20, 91.90, "1ILTVwQtetcb_hdRjki2ZbR26p-8j5LUp", "1byeUsM34_gFL0jVr5P5GAw", "scvb"),
    "small_240": (81.01, 95.33, "1ViOJiwbOxTbk1V2Go7PlCbDbWPbjWPJH", "1I9CrpdPU_D5LniqIVBoIPQ", "32us"),
    "base_240": (82.12, 95.87, "1vTorkc63O4JE9cYUMHBRxFMDOFoC-iK7", "1TR_aBHQ2n1J0RgHFoVh_bw", "jj2q"),
    "9_240": (73.78, 91.93, "1UCX9_mJSx2kDAmEd_xDXyd4e6-Mg3RPf", "1M8r5vqMHJ-rFwBoW1uL2qQ", "mjcb"),
    "15_240": (81.51, 95.72, "1HwkLWdz6A3Nz-dVbw4ZUcCkxUbPXgHwM", "1wiO_Gjk4fvSq08Ud8xKwVw", "n55b"),
    "18_240": (82.29, 96.00, "1C4b_a_6ia8NCEXSUEMDdCEFzedr0RB_m", "1w7VJ7DNqq6APuY7PdlKEjA", "xese"),
    "9_dagger_240": (76.92, 93.61, "1_cXQ0M8Hr9UyugZk07DrsBl8dwwCA6br", "1F1tRSaG4EfCV_WiTEwXxBw", "58ah"),
    "15_dagger_240": (82.23, 95.93, "1cCgBoozh2WFtSz42LwEUUPPyC5KmkAFg", "1xJ4P2zy3r9RcNFSMtzvZgg", "qwup"),
    "18_dagger_240": (82.51, 96.03, "1sdAbWxKL5k3QIo1zdgHzasIOtpy_Ogpw", "15qYHgt0iRxdhtXoC_ct2Jg", "qtw4"),
    "15_dagger_408": (83.75, 96.75, "12LQjYbs9-LyrY1YeRt46x9BTB3NJuhpJ", "1d-BAm03azLP_CyEHF3c7ZQ", "w71e"),
    "18_dagger_408": (84.17, 96.82, "1CeGwB6Tv0oL8QtL0d7Ar-d02Lg_PqACr", "1l_6PTldZ3IDB7XWgjM6LhA", "99b6"),
}

BIXT = {  # official table of weights: top-1, top-5, number of the file on figshare
    "ti_l64_p16": (80.10, 94.74, 52882961),
    "ti_l64_p16s8": (81.88, 95.43, 52882994),
    "ti_l64_p16s4": (82.70, 95.91, 52882982),
    "ti_l64_p16_ft384": (81.85, 95.68, 52882964),
    "ti_l64_p16s8_ft384": (82.77, 96.04, 52882988),
    "ti_l64_p16s4_ft384": (83.15, 96.18, 52882970),
    "ti_cnv_l64_p16": (81.00, 95.18, 52882946),
    "ed256_l64_p16": (81.74, 95.37, 52882976),
    "ed256LS_l64_p16s8": (83.24, 96.17, 52882991),
    "ed256LS_l64_p16s8_ft384": (83.89, 96.58, 52882985),
    "ti_l64_d13_p16": (80.44, 94.90, 52882958),
    "ti_l64_d13_p16s8": (82.44, 95.82, 52882979),
    "ti_l64_d13_p16s4": (83.04, 96.18, 52882967),
    "ti_l64_d13_p16_ft384": (82.15, 95.72, 52882955),
    "ti_l64_d13_p16s8_ft384": (83.06, 96.27, 52882973),
    "ti_cnv_l64_d13_p16": (80.95, 95.05, 52882949),
    "ti_cnv_l64_d13_p8": (82.47, 95.68, 52882952),
}

_NO_WEIGHTS = "the authors' code has this model, and no weights of it"
UNPUBLISHED = {  # models whose weights nobody released, by shell pattern, and what to know instead
    "cat_tiny_v2": "no checkpoint of CAT-T-v2 was ever published (announced only), and ours is a reconstruction",
    "cabvit_h_*": "no checkpoint of CabViT was ever published; files of FcaFormer, its later name, fit",
    "cabvit_p_*": "no checkpoint of CabViT was ever published",
    "crossvit_18_dagger_480": "the paper's largest model was never released",
    "bixt_ti_l32_*": _NO_WEIGHTS,
    "bixt_ti_l128_*": _NO_WEIGHTS,
    "bixt_ed256_l64_p16s8*": _NO_WEIGHTS,
    "bixt_ti_cnv_l64_d13_p4": _NO_WEIGHTS,
}
