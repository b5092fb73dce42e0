# box AP 49.8 (arXiv:2411.07635). Weights: MIT.
_base_ = "./retinanet_ravlt-t_fpn_amp-1x_coco.py"
model = dict(backbone=dict(model="ravlt_b", drop_path_rate=0.4))
