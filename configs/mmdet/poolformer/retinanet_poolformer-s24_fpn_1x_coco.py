# box AP 38.9 (arXiv:2111.11418). Weights: Apache-2.0.
_base_ = "./retinanet_poolformer-s12_fpn_1x_coco.py"
model = dict(backbone=dict(model="poolformer_s24"))
