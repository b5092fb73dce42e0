# mIoU 49.5 (arXiv:2411.07635). Weights: MIT.
_base_ = "./fpn_ravlt-t_8xb2-80k_ade20k-512x512.py"
model = dict(backbone=dict(model="ravlt_s", drop_path_rate=0.15))
