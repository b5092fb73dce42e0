# box AP 37.3, mask AP 34.6 (arXiv:2111.11418). Weights: Apache-2.0.
# Settings: github.com/sail-sg/poolformer. Every map has a GroupNorm of its own, over channels and positions.
_base_ = ["../_base_/models/mask-rcnn.py", "../_base_/schedules/1x.py"]
model = dict(backbone=dict(model="poolformer_s12", map_norm="groupnorm"))
