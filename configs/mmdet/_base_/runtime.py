# mmdetection with the backbones of mixzoo in its registries.
_base_ = "mmdet::_base_/default_runtime.py"
custom_imports = dict(imports=["mixzoo.zoo.openmmlab"], allow_failed_imports=False)
