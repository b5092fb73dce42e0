# box AP 50.9, mask AP 44.0 (arXiv:2106.13797). Weights: Apache-2.0.
# Settings: github.com/whai362/PVT.
_base_ = ["../_base_/models/cascade-mask-rcnn.py", "../_base_/schedules/3x_swin.py"]
model = dict(backbone=dict(model="pvt_v2_b2_li", drop_path_rate=0.1))
optim_wrapper = dict(type="AmpOptimWrapper")
