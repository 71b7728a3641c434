/* bench/claims_gpt.h - the model's side of bench/claims. MIT. */
#ifndef CLAIMS_GPT_H
#define CLAIMS_GPT_H

/* Change each token but the first of a sequence of 16, one at a time: at how many of the 15 places do
 * logits before it change, and at how many its own? *loss: of a fresh model of 65 tokens, in nats.
 * -1: it could not run. */
void gpt_causality(int *later, int *earlier, double *loss);
#endif
