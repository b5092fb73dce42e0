# mIoU 49.4, 50.2 at several scales, 121 M parameters (arXiv:2209.15001). Weights: MIT.
_base_ = "./upernet_dinat-s-tiny_8xb2-amp-160k_ade20k-512x512.py"
model = dict(backbone=dict(model="dinat_s_base"))
