# mIoU 52.5 (arXiv:2411.07635). Weights: MIT.
_base_ = "./upernet_ravlt-s_8xb2-amp-160k_ade20k-512x512.py"
model = dict(backbone=dict(model="ravlt_b", drop_path_rate=0.4))
