# mIoU 47.8, 48.8 at several scales, 58 M parameters (arXiv:2209.15001). Weights: MIT.
_base_ = "./upernet_dinat-mini_8xb2-amp-160k_ade20k-512x512.py"
model = dict(backbone=dict(model="dinat_tiny", drop_path_rate=0.3))
