# No published figure at hand (arXiv:2405.11582). Weights: no licence stated.
# Settings: github.com/xinghaochen/SLAB, a layer norm for every map, batch norms as they are; figures are in a plot
# only.
_base_ = ["../_base_/models/mask-rcnn.py", "../_base_/schedules/3x_swin.py"]
model = dict(backbone=dict(model="swin_t_prepbn", map_norm="layernorm_1e-5", norm_eval=True, drop_path_rate=0.2))
optim_wrapper = dict(type="AmpOptimWrapper")
