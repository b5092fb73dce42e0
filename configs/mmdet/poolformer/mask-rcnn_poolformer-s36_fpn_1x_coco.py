# box AP 41.0, mask AP 37.7 (arXiv:2111.11418). Weights: Apache-2.0.
_base_ = "./mask-rcnn_poolformer-s12_fpn_1x_coco.py"
model = dict(backbone=dict(model="poolformer_s36"))
