# mIoU 48.6, 49.9 at several scales, 81 M parameters (arXiv:2209.15001). Weights: MIT.
_base_ = "./upernet_dinat-s-tiny_8xb2-amp-160k_ade20k-512x512.py"
model = dict(backbone=dict(model="dinat_s_small"))
