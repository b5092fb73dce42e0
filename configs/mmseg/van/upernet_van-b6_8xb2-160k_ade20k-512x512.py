# mIoU 54.7 at several scales, 231 M parameters (arXiv:2202.09741). Weights: no licence stated.
_base_ = "./upernet_van-b0_8xb2-160k_ade20k-512x512.py"
model = dict(backbone=dict(model="van_b6", drop_path_rate=0.5))
# From weights of ImageNet-22k.
