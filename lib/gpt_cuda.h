/* gpt_cuda.h - the model's passes and the optimizer's stages on an NVIDIA GPU, as C sees them. MIT.

   lib/gpt_cuda.cu and lib/signmuon_cuda.cu define these functions. They are weak: a program that is
   linked without the two files finds them NULL, says that it has no GPU, and calls none.

   ERRORS   0, or -1 and one sentence in `error`, after which the device cannot be used any more
   BITS     depend on the kind of device; they are the same from run to run */
#ifndef GPT_CUDA_H
#define GPT_CUDA_H

#include <stddef.h>
#include <stdint.h>
#include "optimizer.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct GptCuda GptCuda;
typedef struct SmDevice SmDevice;

/* What a model is. Kinds of tensors are numbered as train_gpt.c does, from WTE to LNFB. */
typedef struct GptCudaShape {
    int layers, heads, width, context, vocab;
    double dropout;
    int bf16;          /* products and stored activations in bf16, else in fp32 */
    size_t parameters; /* fp32 values in params and grads */
    int64_t offset[16],
        stride; /* of each kind in layer 0, -1: there is none; from layer to layer */
} GptCudaShape;

/* A pass over in (B, T). */
typedef struct GptCudaPass {
    const int32_t *in, *target; /* (B, T); target: NULL, or -1 where it does not count */
    size_t B, T;
    float loss_scale;     /* gradients are of loss_scale times the sum of the losses */
    int training, add;    /* make gradients: write them, or add to those there are */
    const float *params;  /* in host memory; NULL: the device's own */
    int same_params;      /* they are those of the pass before */
    uint64_t dropout_key; /* of this worker's pass */
    float *losses;        /* NULL, or receives (B, T) in nats, 0 where a target does not count */
    float *logits;        /* NULL, or receives those after the last token, (V) */
} GptCudaPass;

#pragma weak gpt_cuda_devices
#pragma weak gpt_cuda_measure
#pragma weak gpt_cuda_create
#pragma weak gpt_cuda_free
#pragma weak gpt_cuda_name
#pragma weak gpt_cuda_bytes
#pragma weak gpt_cuda_params
#pragma weak gpt_cuda_grads
#pragma weak gpt_cuda_write_params
#pragma weak gpt_cuda_read
#pragma weak gpt_cuda_pass
#pragma weak gpt_cuda_squares
#pragma weak gpt_cuda_stages

/* How many GPUs there are; 0 when none can be used. Not before a fork: the child could use none. */
int gpt_cuda_devices(void);

/* Bytes that the arrays of such a model take on a GPU; opens none. 0: no memory. */
size_t gpt_cuda_measure(const GptCudaShape *shape, size_t batch, int train);

/* A model for passes of at most `batch` sequences, on GPU number `device`, counted from 0.
 * error   NULL and a sentence: no device, no memory */
GptCuda *gpt_cuda_create(const GptCudaShape *shape, size_t batch, int train, int device,
                         char *error, size_t size);
void gpt_cuda_free(GptCuda *m);
const char *gpt_cuda_name(const GptCuda *m); /* "NVIDIA H100 80GB HBM3" */
size_t gpt_cuda_bytes(const GptCuda *m);     /* memory that it takes on the device */

/* Parameters and gradients where they lie, for the optimizer's stages; and copies of them. */
float *gpt_cuda_params(GptCuda *m);
const float *gpt_cuda_grads(GptCuda *m);
int gpt_cuda_write_params(GptCuda *m, const float *params, char *error, size_t size);
int gpt_cuda_read(GptCuda *m, float *params, float *grads, char *error,
                  size_t size); /* NULL: not */

int gpt_cuda_pass(GptCuda *m, const GptCudaPass *pass, char *error, size_t size);

/* square[i] <- squared norm of the gradient of the i-th of `count` tensors */
int gpt_cuda_squares(GptCuda *m, const SmTensor *tensors, size_t count, double *square, char *error,
                     size_t size);

/* Stages of sm_step on the model's device; see SmDevice in optimizer.h. ns_bf16: Newton-Schulz
 * multiplies in bf16, else in fp32. NULL and a sentence: no memory. sm_free frees it. */
SmDevice *gpt_cuda_stages(GptCuda *m, int ns_bf16, char *error, size_t size);
#ifdef __cplusplus
}
#endif
#endif
