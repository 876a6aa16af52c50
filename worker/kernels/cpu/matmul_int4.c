#include "matmul.h"
void tern_matmul_int4(const Matrix *w, const Call *call) { (void)w, (void)call; }
