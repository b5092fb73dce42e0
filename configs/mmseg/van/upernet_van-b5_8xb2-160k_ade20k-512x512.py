# mIoU 53.9 at several scales, 117 M parameters (arXiv:2202.09741). Weights: no licence stated.
_base_ = "./upernet_van-b0_8xb2-160k_ade20k-512x512.py"
model = dict(backbone=dict(model="van_b5", drop_path_rate=0.4))
# From weights of ImageNet-22k.
