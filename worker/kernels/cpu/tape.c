/* Calls of kernels, made one after the other: Python needs some eight microseconds for each, which is as long as a
   small one takes, and a decode step of 28 layers has more than two hundred. See worker/layers/tape.py, which records them. */

#include "attention.h"
#include "lora.h"
#include "matmul.h"
#include "rows.h"

enum { MATMUL, NORM, ACTIVATE, ATTEND, LORA };

typedef struct {
    int64_t kind;
    int64_t a[11]; /* the function's arguments, in their order; a double as its bits */
} Recorded;

INLINE void *address(int64_t number) { return (void *)(intptr_t)number; }

/* The first product from `call` on, or NULL. */
static const Matrix *product_from(const Recorded *call, const Recorded *end) {
    while (call < end && call->kind != MATMUL) call++;
    return call < end ? address(call->a[0]) : NULL;
}

static int make(const Recorded *call, const Recorded *end) {
    const int64_t *a = call->a;
    double number;
    switch (call->kind) {
    case MATMUL:
        tern_matmul_before(product_from(call + 1, end), address(a[0]), address(a[1]), (int)a[2], a[3], a[4], address(a[5]),
                           address(a[6]), (int)a[7]);
        return 0;
    case NORM:
        memcpy(&number, &a[10], sizeof number);
        return tern_norm(a[0], address(a[1]), address(a[2]), address(a[3]), address(a[4]), address(a[5]), a[6], a[7],
                         a[8], a[9], number);
    case ACTIVATE:
        tern_activate(a[0], address(a[1]), address(a[2]), address(a[3]), a[4], a[5], a[6], a[7]);
        return 0;
    case LORA:
        tern_lora(address(a[0]), address(a[1]), address(a[2]), address(a[3]), a[4], a[5], a[6], address(a[7]), a[8],
                  address(a[9]));
        return 0;
    default:
        return tern_write_kv_and_attend(address(a[0]), address(a[1]), address(a[2]), address(a[3]), address(a[4]), a[5],
                                        address(a[6]));
    }
}

/* Returns 0, or what the first call that fails returns. */
int tern_play(const Recorded *calls, int64_t count) {
    for (int64_t i = 0; i < count; i++) {
        int status = make(calls + i, calls + count);
        if (status) return status;
    }
    return 0;
}
