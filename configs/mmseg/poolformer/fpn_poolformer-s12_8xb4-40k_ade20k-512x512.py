# mIoU 37.2 (arXiv:2111.11418). Weights: Apache-2.0.
# Settings: github.com/sail-sg/poolformer. Every map has a GroupNorm of its own, over channels and positions.
_base_ = ["../_base_/models/fpn.py", "../_base_/datasets/ade20k_aligned_8xb4.py", "../_base_/schedules/40k.py"]
model = dict(backbone=dict(model="poolformer_s12", map_norm="groupnorm"))
