# box AP 40.4 (arXiv:2102.12122). Weights: Apache-2.0.
_base_ = "./retinanet_pvt-tiny_fpn_1x_coco.py"
model = dict(backbone=dict(model="pvt_small"))
