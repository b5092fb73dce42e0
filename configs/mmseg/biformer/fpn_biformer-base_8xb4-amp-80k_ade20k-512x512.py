# mIoU 49.9 (arXiv:2303.08810). Weights: MIT.
_base_ = "./fpn_biformer-small_8xb4-amp-80k_ade20k-512x512.py"
model = dict(backbone=dict(model="biformer_base", drop_path_rate=0.3))
