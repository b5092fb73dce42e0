# box AP 42.6 (arXiv:2102.12122). Weights: Apache-2.0.
_base_ = "./retinanet_pvt-tiny_fpn_1x_coco.py"
model = dict(backbone=dict(model="pvt_large", drop_path_rate=0.0))
optim_wrapper = dict(type="AmpOptimWrapper")
