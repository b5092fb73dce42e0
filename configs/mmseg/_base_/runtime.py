# mmsegmentation with the backbones of mixzoo in its registries. MMEngine looks for "mmseg::" in a package that is
# called mmsegmentation, which the maintained fork is not: hence the paths.
_base_ = f"{__import__('mmseg').__path__[0]}/.mim/configs/_base_/default_runtime.py"
custom_imports = dict(imports=["mixzoo.zoo.openmmlab"], allow_failed_imports=False)
