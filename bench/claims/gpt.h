/* gpt.h - what bench/claims asks of the model of train_gpt.c. MIT. */
#ifndef CLAIMS_GPT_H
#define CLAIMS_GPT_H

/* Change each token but the first of a sequence of 16, one at a time. earlier, own <- at how many
 * of these 15 places the losses before the token change, and the loss at it; fresh <- the mean loss
 * of a new model of 65 tokens, in nats. Not 0: it could not run. */
int gpt_causality(int *earlier, int *own, double *fresh);

#endif
