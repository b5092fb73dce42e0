# box AP 38.2, mask AP 36.2 (arXiv:2106.13797). Weights: Apache-2.0.
# Settings: github.com/whai362/PVT.
_base_ = ["../_base_/models/mask-rcnn.py", "../_base_/schedules/1x.py"]
model = dict(backbone=dict(model="pvt_v2_b0", drop_path_rate=0.1))
