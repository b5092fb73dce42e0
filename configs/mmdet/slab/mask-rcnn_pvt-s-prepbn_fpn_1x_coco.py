# No published figure at hand (arXiv:2405.11582). Weights: no licence stated.
# Settings: github.com/xinghaochen/SLAB; figures are in a plot only, stochastic depth is PVT's.
_base_ = ["../_base_/models/mask-rcnn.py", "../_base_/schedules/1x.py"]
model = dict(backbone=dict(model="pvt_s_prepbn", drop_path_rate=0.1))
