"""What tracing and editing rely on, measured on a model at load: a model that fails is refused.

The numbers are relative errors, the largest difference over the largest value. What is measured is
what is used, as it is used: values are read and written in some rows of a batch, batches grow from
block to block, texts are padded on the right and on the left, a common beginning is computed once,
and prompts of different length are continued together.

Three faster ways have a slower one that needs less (a prefix computed once, batches that grow,
padding on the left): where such a way fails, the slower one is taken. All else that fails refuses
the model.
"""
