# No published figure at hand (arXiv:2202.09741). Weights: Apache-2.0.
# The authors' detectors (github.com/Visual-Attention-Network/VAN-Detection) are not at hand: settings are those of
# PVT (arXiv:2102.12122), stochastic depth that of VAN's Semantic FPN.
_base_ = ["../_base_/models/mask-rcnn.py", "../_base_/schedules/1x.py"]
model = dict(backbone=dict(model="van_b0", drop_path_rate=0.2))
