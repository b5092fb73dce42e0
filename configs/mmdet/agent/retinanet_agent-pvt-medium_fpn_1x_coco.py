# box AP 45.8, 46 M parameters (arXiv:2312.08874). Weights: no licence stated.
_base_ = "./retinanet_agent-pvt-tiny_fpn_1x_coco.py"
model = dict(backbone=dict(model="agent_pvt_medium", drop_path_rate=0.2))
