/* svd.h - exact polar factors, the oracle of sm_polar: a one-sided Jacobi SVD in double. */
#ifndef SVD_H
#define SVD_H

#include <math.h>
#include <stdlib.h>

/* Rows p and q (n entries) <- orthogonal combinations of them; returns 0 when they were orthogonal.
 * The same rotation turns rows p and q of u (m entries). */
static inline int svd_rotate(double *p, double *q, size_t n, double *u_p, double *u_q, size_t m) {
    double a = 0, b = 0, c = 0;
    for (size_t k = 0; k < n; k++) a += p[k] * p[k], b += q[k] * q[k], c += p[k] * q[k];
    if (fabs(c) <= 1e-15 * sqrt(a * b)) return 0;
    double zeta = (b - a) / (2 * c);
    double tangent = (zeta < 0 ? -1 : 1) / (fabs(zeta) + sqrt(1 + zeta * zeta));
    double cosine = 1 / sqrt(1 + tangent * tangent), sine = cosine * tangent;
    for (size_t k = 0; k < n + m; k++) {
        double *x = k < n ? &p[k] : &u_p[k - n], *y = k < n ? &q[k] : &u_q[k - n];
        double was = *x;
        *x = cosine * was - sine * *y;
        *y = sine * was + cosine * *y;
    }
    return 1;
}

/* Rows of x (m x n, m <= n) <- sigma_i v_i^T, rows of u (m x m) <- u_i^T, of x = U diag(sigma) V^T;
 * sigma (m). */
static inline void svd(double *x, double *u, double *sigma, size_t m, size_t n) {
    for (size_t i = 0; i < m * m; i++) u[i] = i % (m + 1) == 0;
    for (int sweep = 0, moved = 1; moved && sweep < 60; sweep++) {
        moved = 0;
        for (size_t p = 0; p < m; p++)
            for (size_t q = p + 1; q < m; q++)
                moved |= svd_rotate(x + p * n, x + q * n, n, u + p * m, u + q * m, m);
    }
    for (size_t i = 0; i < m; i++) {
        sigma[i] = 0;
        for (size_t k = 0; k < n; k++) sigma[i] += x[i * n + k] * x[i * n + k];
        sigma[i] = sqrt(sigma[i]);
    }
}

/* out <- U V^T of g (rows x cols) = U diag(sigma) V^T. Singular values below 1e-6 of the largest,
 * which is the rounding of fp32 input, count as zero. out may be g. */
static inline void svd_polar(float *out, const float *g, size_t rows, size_t cols) {
    size_t m = rows > cols ? cols : rows, n = rows > cols ? rows : cols;
    size_t down = rows > cols ? 1 : cols, right = rows > cols ? cols : 1; /* X is g or g^T, wide */
    double largest = 0, *x = calloc(m * n + m * m + m, sizeof *x), *u, *sigma;
    if (!x) abort();
    u = x + m * n, sigma = u + m * m;
    for (size_t i = 0; i < m * n; i++) x[i] = (double)g[i / n * down + i % n * right];
    svd(x, u, sigma, m, n);
    for (size_t i = 0; i < m; i++) largest = fmax(largest, sigma[i]);
    for (size_t i = 0; i < m; i++)
        for (size_t k = 0; k < n; k++) {
            double sum = 0;
            for (size_t j = 0; j < m; j++)
                if (sigma[j] > 1e-6 * largest) sum += u[j * m + i] * x[j * n + k] / sigma[j];
            out[i * down + k * right] = (float)sum;
        }
    free(x);
}

#endif
