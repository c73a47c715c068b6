/* The compiled engine's layout in C: chunked lists of 16, a flag byte a page, a row a group.
 *
 * The rules of policy v17 that a bulk replay of one tree needs: charge up the tree, worker
 * of the charging group, ksgxd, rounds by cursor over the groups that have pages, second
 * chance. It gives the same counts as the kernel on the workloads of the benchmarks, which
 * is checked each time. SECS and VA pages are charges that never move.
 *
 * cc -O2 -shared -fPIC _chunked.c
 */
#include <stdint.h>
#include <stdlib.h>

enum { PARENT, USAGE, LIMIT, PEAK, BELOW, COUNT, HEAD, HEAD_AT, TAIL, TAIL_AT, PINS, LOADED, PATH_MIN,
       POS, END, CURSOR, EVENTS, LOCAL, EVICTED, QUEUED, FAULTS, COLUMNS = 48 };
enum { EXISTS = 1, RESIDENT = 2, MAPPED = 4, ACCESSED = 8, READY = 15 };
typedef int64_t i64;
typedef struct {
    i64 epc, low, high, free_chunk, chunks, evicted, loaded, hits;
    i64 (*cg)[COLUMNS];
    i64 *home;       /* enclave of each block of 64 pages */
    i64 (*en)[24];   /* rows of enclaves: group, resident pages, evicted, loaded, faults */
    uint8_t *flags;
    int32_t (*chunk)[16], *link;
    i64 *order;      /* groups in pre-order */
    uint64_t *bits;  /* non-empty lists, in pre-order */
    i64 groups;
} node;

static void mark(node *n, i64 g, int full) {
    i64 p = n->cg[g][POS];
    if (full) n->bits[p >> 6] |= 1ull << (p & 63);
    else n->bits[p >> 6] &= ~(1ull << (p & 63));
}
static i64 next_list(node *n, i64 from, i64 to) {
    if (from >= to) return -1;
    i64 w = from >> 6;
    uint64_t b = n->bits[w] >> (from & 63);
    if (b) { i64 p = from + __builtin_ctzll(b); return p < to ? p : -1; }
    for (w++; w <= (to - 1) >> 6; w++)
        if (n->bits[w]) { i64 p = (w << 6) + __builtin_ctzll(n->bits[w]); return p < to ? p : -1; }
    return -1;
}
static void append(node *n, i64 g, int32_t page) {
    i64 *r = n->cg[g];
    if (r[TAIL] < 0 || r[TAIL_AT] == 16) {
        i64 c = n->free_chunk;
        if (c >= 0) n->free_chunk = n->link[c]; else c = n->chunks++;
        n->link[c] = -1;
        if (r[TAIL] < 0) { r[HEAD] = c; r[HEAD_AT] = 0; } else n->link[r[TAIL]] = (int32_t)c;
        r[TAIL] = c; r[TAIL_AT] = 0;
    }
    n->chunk[r[TAIL]][r[TAIL_AT]++] = page;
    if (r[COUNT]++ == 0) mark(n, g, 1);
}
static i64 isolate(node *n, i64 g, i64 want, int32_t *buf) {
    i64 *r = n->cg[g], take = want < r[COUNT] ? want : r[COUNT];
    for (i64 k = 0; k < take; k++) {
        if (r[HEAD_AT] == 16) {
            i64 c = r[HEAD];
            r[HEAD] = n->link[c]; r[HEAD_AT] = 0;
            n->link[c] = (int32_t)n->free_chunk; n->free_chunk = c;
        }
        buf[k] = n->chunk[r[HEAD]][r[HEAD_AT]++];
    }
    r[COUNT] -= take;
    for (i64 l = g; l >= 0; l = n->cg[l][PARENT]) n->cg[l][BELOW] -= take;
    if (take && !r[COUNT]) mark(n, g, 0);
    return take;
}
static void reclaim(node *n, i64 top, i64 pages) {
    int32_t buf[16];
    for (i64 scanned = 0; scanned < pages && n->cg[top][BELOW];) {
        i64 g = top, *t = n->cg[top];
        if (t[END] > t[POS] + 1) {
            i64 p = next_list(n, n->cg[t[CURSOR]][POS], t[END]);
            if (p < 0) p = next_list(n, t[POS], t[END]);
            g = n->order[p];
            t[CURSOR] = p + 1 < t[END] ? n->order[p + 1] : top;
        }
        i64 taken = isolate(n, g, 16, buf), kept = 0;
        scanned += taken;
        for (i64 k = 0; k < taken; k++) {
            uint8_t f = n->flags[buf[k]];
            if (f & ACCESSED) { n->flags[buf[k]] = f & ~ACCESSED; append(n, g, buf[k]); }
            else buf[kept++] = buf[k];
        }
        for (i64 l = g; taken > kept && l >= 0; l = n->cg[l][PARENT]) n->cg[l][BELOW] += taken - kept;
        for (i64 k = 0; k < kept; k++) {
            i64 *e = n->en[n->home[buf[k] >> 6]];
            n->flags[buf[k]] = EXISTS; e[2]++;
            if (!--e[1]) abort(); /* the SECS would follow; no workload here gets that far */
        }
        n->cg[g][EVICTED] += kept; n->cg[g][PINS] -= kept; n->evicted += kept;
        for (i64 l = g; l >= 0; l = n->cg[l][PARENT]) n->cg[l][USAGE] -= kept;
    }
}
static void worker(node *n, i64 g) {
    for (;;) {
        i64 limit = n->cg[g][PATH_MIN];
        if (n->cg[g][USAGE] <= (limit > 128 ? limit - 32 : limit) - 1 || !n->cg[g][BELOW]) return;
        reclaim(n, g, 16);
    }
}
void replay(node *n, const int32_t *pages, i64 count) {
    for (i64 i = 0; i < count; i++) {
        int32_t page = pages[i];
        uint8_t f = n->flags[page];
        if (f & MAPPED) { if (f != READY) n->flags[page] = READY; n->hits++; continue; }
        if (f & RESIDENT) { n->flags[page] = READY; continue; }
        i64 *e = n->en[n->home[page >> 6]], g = e[0];
        for (int call = 0; call < 8; call++) {
            i64 l = g, woken = 0;
            e[4]++; n->cg[g][FAULTS]++;
            for (; l >= 0; l = n->cg[l][PARENT]) {
                i64 u = n->cg[l][USAGE] + 1;
                if (u > n->cg[l][LIMIT] || u > n->epc) break;
                n->cg[l][USAGE] = u;
                if (u > n->cg[l][PEAK]) n->cg[l][PEAK] = u;
            }
            if (l >= 0) {
                for (i64 b = g; b != l; b = n->cg[b][PARENT]) n->cg[b][USAGE]--;
                n->cg[l][LOCAL]++;
                for (i64 b = l; b > 0; b = n->cg[b][PARENT]) n->cg[b][EVENTS]++;
                worker(n, g);
                continue;
            }
            n->cg[g][PINS]++;
            woken = n->epc - n->cg[0][USAGE] < n->low && n->cg[0][BELOW];
            n->flags[page] = READY; n->cg[g][LOADED]++; n->loaded++;
            e[1]++; e[3]++;
            append(n, g, page);
            for (l = g; l >= 0; l = n->cg[l][PARENT]) n->cg[l][BELOW]++;
            while (woken && n->epc - n->cg[0][USAGE] < n->high && n->cg[0][BELOW]) reclaim(n, 0, 16);
            break;
        }
    }
}
/* A node of `groups` groups: parent and limit (pages) of each, in pre-order; group 0 is the root. */
node *make(i64 epc, i64 groups, const i64 *parent, const i64 *limit, i64 blocks, const i64 *home, i64 enclaves, const i64 *rows) {
    node *n = calloc(1, sizeof *n);
    n->epc = epc; n->low = 32; n->high = 64; n->free_chunk = -1; n->groups = groups;
    n->cg = aligned_alloc(64, groups * sizeof *n->cg);
    n->flags = calloc(blocks, 64);
    i64 chunks = epc / 16 + 3 * groups + 64;
    n->chunk = aligned_alloc(64, chunks * 64); n->link = calloc(chunks, 4);
    n->order = calloc(groups, 8); n->bits = calloc(groups / 64 + 2, 8);
    n->home = calloc(blocks, 8); n->en = calloc(enclaves, sizeof *n->en);
    for (i64 k = 0; k < enclaves; k++) { n->en[k][0] = rows[2 * k]; n->en[k][1] = rows[2 * k + 1]; }
    for (i64 b = 0; b < blocks; b++) n->home[b] = home[b];
    for (i64 g = 0; g < groups; g++) {
        for (int c = 0; c < COLUMNS; c++) n->cg[g][c] = 0;
        n->cg[g][PARENT] = parent[g]; n->cg[g][LIMIT] = limit[g];
        n->cg[g][PATH_MIN] = g && n->cg[parent[g]][PATH_MIN] < limit[g] ? n->cg[parent[g]][PATH_MIN] : limit[g];
        n->cg[g][HEAD] = n->cg[g][TAIL] = -1; n->cg[g][POS] = g; n->cg[g][CURSOR] = g; n->order[g] = g;
        n->cg[g][END] = g + 1;
    }
    for (i64 g = groups - 1; g > 0; g--)
        if (n->cg[g][END] > n->cg[parent[g]][END]) n->cg[parent[g]][END] = n->cg[g][END];
    return n;
}
/* Take over what building left: flags, list of each group, usage. */
void adopt(node *n, const uint8_t *flags, i64 pages, i64 g, const int32_t *list, i64 count, const i64 *row) {
    if (g == 0) for (i64 p = 0; p < pages; p++) n->flags[p] = flags[p];
    n->cg[g][USAGE] = row[0]; n->cg[g][PINS] = row[1]; n->cg[g][CURSOR] = row[2]; n->cg[g][PEAK] = row[3];
    for (i64 k = 0; k < count; k++) append(n, g, list[k]);
    for (i64 l = g; l >= 0; l = n->cg[l][PARENT]) n->cg[l][BELOW] += count;
}
void counts(node *n, i64 *out) { out[0] = n->hits; out[1] = n->loaded; out[2] = n->evicted; }
/* Marsaglia's generator: the accesses of the recorded workloads. */
void xorshift(uint64_t *state, int32_t *out, i64 count, uint64_t modulo) {
    uint64_t x = *state;
    for (i64 i = 0; i < count; i++) {
        x ^= x << 13; x ^= x >> 7; x ^= x << 17;
        out[i] = (int32_t)(x % modulo);
    }
    *state = x;
}
