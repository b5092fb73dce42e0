# mIoU 47.1, 48.4 at several scales, 58 M parameters (arXiv:2204.07143). Weights: MIT.
_base_ = "./upernet_nat-mini_8xb2-amp-160k_ade20k-512x512.py"
model = dict(backbone=dict(model="nat_tiny", drop_path_rate=0.3))
