"""Make a trained JAX model forget, and measure honestly how much it forgot.

Every name below is made from names above it:

    splits      = split_forget(key, dataset, fraction=0.1)
    source      = train(key, model, splits.train, epochs=20).state
    sensitivity = gradient_sensitivity(objective, source.params, batch)
    mask        = topk_mask(source.params, sensitivity, k=45)
    perturbed   = perturb(source.params, mask, epsilon=-1.0)
    unlearned   = finetune(key, model, perturbed, splits, teacher=source).state
    evaluation  = evaluate(model, unlearned, source, splits, retrained)

`unlearn` does the middle four in one call, for every strategy of the paper.
"""

import lazy_loader

__version__ = '0.1.0'
# What there is stands in `__init__.pyi`; each is loaded when it is asked for.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
