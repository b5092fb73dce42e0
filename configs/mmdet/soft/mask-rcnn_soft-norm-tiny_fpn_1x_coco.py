# box AP 41.2, mask AP 38.2, 33 M parameters (arXiv:2207.03341). Weights: MIT.
# The authors publish figures and no settings: these are PVT's (arXiv:2102.12122), stochastic depth that of the
# classifiers. The last stage runs with its class token.
_base_ = ["../_base_/models/mask-rcnn.py", "../_base_/schedules/1x.py"]
model = dict(backbone=dict(model="soft_norm_tiny", drop_path_rate=0.1))
