# box AP 40.4, mask AP 37.8 (arXiv:2102.12122). Weights: Apache-2.0.
_base_ = "./mask-rcnn_pvt-tiny_fpn_1x_coco.py"
model = dict(backbone=dict(model="pvt_small"))
