# box AP 42.0, mask AP 39.0 (arXiv:2102.12122). Weights: Apache-2.0.
_base_ = "./mask-rcnn_pvt-tiny_fpn_1x_coco.py"
model = dict(backbone=dict(model="pvt_medium", drop_path_rate=0.0))
