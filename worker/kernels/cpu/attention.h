/* What the attention kernels are told: of a layer, once; of a step, once for all layers of a kind.
 * Field for field the same as the ctypes structures in native_attention.py. */
#pragma once
#include <stdint.h>

typedef struct {
    char *keys, *values;         /* [block, kv head, position, dim] */
    float *key_scales, *value_scales; /* [block, kv head, position]: keys and values are int8; or NULL, of dtype */
    const float *sinks;          /* [head] logits of nothing at all, or NULL */
    const void *q_norm, *k_norm; /* [dim] weights of the heads' RMSNorms, or NULL */
    int64_t norm_dtype;
    double norm_eps;
    int64_t dtype;               /* of queries, keys, values (unless int8), cosines and the output: F32, BF16, F16 */
    int64_t num_heads, num_kv_heads, head_dim, block_size;
    int64_t rotary_dim;          /* 0: no rotation */
    double scale, soft_cap;      /* soft_cap c: scores become c · tanh(score / c); 0: none */
} attention_layer;

typedef struct {
    int64_t num_sequences, num_tokens;
    const int64_t *query_start;  /* [sequence + 1] first token of each */
    const int64_t *token_rows;   /* [token] its sequence */
    const int64_t *positions;    /* [token] in its sequence */
    const int32_t *block_tables; /* [sequence, table_stride] */
    int64_t table_stride;
    int64_t window;              /* tokens that a token sees, itself included; 0: all */
} attention_step;

/* query [token, query_stride heads, dim] → out [token, head, dim]. Returns 0, or -1 without memory. */
int tern_attend(const attention_layer *layer, const attention_step *step, const void *query, int64_t query_stride, void *out);

/* Writes the step's keys and values, then attends: see kv_write.c. Returns 0, -1 without memory. */
int tern_write_kv_and_attend(const attention_layer *layer, const attention_step *step, void *qkv, const void *cos,
                             const void *sin, int64_t rotary_stride, void *out);
