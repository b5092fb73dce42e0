# mIoU 51.0, 51.7 at several scales (arXiv:2303.08810). Weights: MIT.
_base_ = "./upernet_biformer-small_8xb2-amp-160k_ade20k-512x512.py"
model = dict(backbone=dict(model="biformer_base", drop_path_rate=0.4))
