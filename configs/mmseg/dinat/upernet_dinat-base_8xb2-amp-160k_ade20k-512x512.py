# mIoU 49.6, 50.4 at several scales, 123 M parameters (arXiv:2209.15001). Weights: MIT.
_base_ = "./upernet_dinat-mini_8xb2-amp-160k_ade20k-512x512.py"
model = dict(backbone=dict(model="dinat_base", drop_path_rate=0.5))
