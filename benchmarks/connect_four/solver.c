/* Connect four on bitboards: an exact solver (win, draw or loss) and a player that looks a few plies ahead.

   own, both -threats-> few moves -table-> reaches a win? a draw? -> 1, 0 or -1, for the one who moves

A board is two sets of cells: `own`, the stones of the one who moves, and `both`, all stones. Column x and row y (from
the bottom) are bit 7 x + y; the seventh bit of a column stays empty, so that no line runs from one column into another.
Shifts find lines (J. Tromp, the Fhourstones benchmark) and threats (P. Pons, "Solving Connect 4: how to build a perfect
AI", 2015). The search asks one yes-or-no question at a time, which is alpha-beta with an empty window; the answers are
kept under the whole position, so the table never errs. One table a process: no two threads may search at once. */

#include <stdint.h>
#include <sys/mman.h>

typedef uint64_t u64;

enum { ILLEGAL = -2, WIN = 1000, COLUMNS = 7 };

static const u64 BOTTOM = 0x40810204081, CELLS = 63 * 0x40810204081;
static const int CENTRE_FIRST[COLUMNS] = {3, 2, 4, 1, 5, 0, 6};

static inline int count(u64 cells) { return __builtin_popcountll(cells); }
static inline u64 column(int x) { return 127ULL << 7 * x; }
static inline u64 playable(u64 both) { return (both + BOTTOM) & CELLS; }

/* Cells that make four together with three of `own` along one direction: below or above the gap, or about it. */
static inline u64 along(u64 own, int step) {
    u64 a = own << step, b = a << step, c = b << step, x = own >> step, y = x >> step, z = y >> step;
    return (a & b & (c | x)) | (x & y & (z | a));
}

/* Empty cells in which a stone of `own` would make four. */
static inline u64 winning(u64 own, u64 both) {
    return (along(own, 1) | along(own, 6) | along(own, 7) | along(own, 8)) & (CELLS ^ both);
}

static inline int has_four(u64 own) {
    u64 up = own & own >> 1, flat = own & own >> 7, falling = own & own >> 6, rising = own & own >> 8;
    return ((up & up >> 2) | (flat & flat >> 14) | (falling & falling >> 12) | (rising & rising >> 16)) != 0;
}

/* ---- What has been proved: two entries a bucket, the costlier first, the newer second ----

An entry is a position (49 bits), what is known of it (4 bits) and the logarithm of the positions that this took. Known
for each goal, 0 (at least a draw) and 1 (a win): bit 2 goal says that it is out of reach, bit 2 goal + 1 that it can be
forced. */

static u64 *table, searched;
static int table_bits;

/* Takes an empty table of 2^bits entries of 8 bytes, and gives the old one back; 0 if there is no room. */
int table_of(int bits) {
    if (table) munmap(table, sizeof(u64) << table_bits);
    void *room = mmap(0, sizeof(u64) << bits, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    table = room == MAP_FAILED ? 0 : room;
    table_bits = bits;
#ifdef MADV_HUGEPAGE
    if (table) madvise(table, sizeof(u64) << bits, MADV_HUGEPAGE);
#endif
    return table != 0;
}

/* Positions searched since the process began. */
u64 searched_so_far(void) { return searched; }

/* Every column reads 2^height + own stones, so the sum names the position; it is never 0, as an empty entry is. */
static inline u64 key_of(u64 own, u64 both) { return own + both + BOTTOM; }
static inline u64 *bucket(u64 key) { return table + (key * 0x9E3779B97F4A7C15 >> (65 - table_bits)) * 2; }
static inline u64 key_in(u64 entry) { return entry & ((1ULL << 49) - 1); }

static inline u64 known_of(u64 key) {
    u64 *slot = bucket(key);
    return (key_in(slot[0]) == key ? slot[0] : key_in(slot[1]) == key ? slot[1] : 0) >> 49 & 15;
}

static void keep(u64 key, u64 known, u64 cost) {
    u64 *slot = bucket(key), work = 63 - __builtin_clzll(cost), entry = key | known << 49 | work << 53;
    int costlier = work >= slot[0] >> 53, same = key_in(slot[0]) == key;
    if (costlier && !same) slot[1] = slot[0];
    slot[!costlier && !same] = entry;
}

/* ---- The solver ---- */

/* The moves, those first that leave the mover most threats, the centre first among equals. */
static int ordered(u64 own, u64 both, u64 moves, u64 *move) {
    int found = 0, threats[COLUMNS];
    for (int i = 0; i < COLUMNS; i++) {
        u64 here = moves & column(CENTRE_FIRST[i]);
        if (!here) continue;
        __builtin_prefetch(bucket(key_of(own ^ both, both | here))); /* waiting for memory took a third */
        int many = count(winning(own | here, both | here)), at = found++;
        for (; at && threats[at - 1] < many; at--) threats[at] = threats[at - 1], move[at] = move[at - 1];
        threats[at] = many;
        move[at] = here;
    }
    return found;
}

/* Whether the mover, who cannot win at once, can force the goal: 0 at least a draw, 1 a win. */
static int reaches(u64 own, u64 both, int goal) {
    searched++;
    u64 other = own ^ both, moves = playable(both), threats = winning(other, both);
    if (!moves) return !goal;
    if (moves & threats) moves &= threats;         /* the other would win there: it must be stopped, */
    if (moves & threats & (moves - 1)) return 0;   /* and only one cell can be; */
    moves &= ~(threats >> 1);                      /* no stone right below a cell where the other wins */
    if (!moves) return 0;
    if (!has_four((goal ? own : other) | (CELLS ^ both))) return !goal; /* without an open line nobody wins */
    if (!(moves & (moves - 1))) return !reaches(other, both | moves, !goal);

    u64 key = key_of(own, both), known = known_of(key), start = searched;
    if (known & (goal ? 1 | 4 : 1)) return 0;
    if (known & (goal ? 8 : 2 | 8)) return 1;
    u64 move[COLUMNS];
    int yes = 0, found = ordered(own, both, moves, move);
    for (int i = 0; i < found && !yes; i++) yes = !reaches(other, both | move[i], !goal);
    keep(key, known | (u64)(1 + yes) << 2 * goal, 1 + searched - start);
    return yes;
}

/* 1 if the mover wins, 0 for a draw, -1 if the other wins, both without a fault. Nobody has four yet. */
int solve(u64 own, u64 both) {
    if (winning(own, both) & playable(both)) return 1;
    return reaches(own, both, 1) ? 1 : reaches(own, both, 0) - 1;
}

/* The value for the mover of a stone in each column, ILLEGAL where the column is full. */
void values(u64 own, u64 both, int8_t *out) {
    u64 wins = winning(own, both);
    for (int x = 0; x < COLUMNS; x++) {
        u64 move = playable(both) & column(x);
        out[x] = !move ? ILLEGAL : move & wins ? 1 : -solve(own ^ both, both | move);
    }
}

void values_of_many(int64_t boards, const u64 *own, const u64 *both, int8_t *out) {
    for (int64_t i = 0; i < boards; i++) values(own[i], both[i], out + i * COLUMNS);
}

/* 1 for each column where the mover makes four, else 0. */
void wins_of_many(int64_t boards, const u64 *own, const u64 *both, int8_t *out) {
    for (int64_t i = 0; i < boards; i++) {
        u64 wins = winning(own[i], both[i]) & playable(both[i]);
        for (int x = 0; x < COLUMNS; x++) out[i * COLUMNS + x] = (wins & column(x)) != 0;
    }
}

/* ---- The player ----

It looks `depth` plies ahead, its own move the first. Every position on the way and at the end is asked whether the
one who moves wins at once: that counts WIN less the stones then on the board, so a win soon is better than a win late.
At the end, any other position counts the empty cells in which the mover would make four, less those in which the other
would, whether or not they can be reached; a full board counts 0. So depth 1 sees that the other would win next. */

static int look(u64 own, u64 both, int depth, int alpha, int beta) {
    u64 other = own ^ both, wins = winning(own, both), moves = playable(both);
    if (!moves) return 0;
    if (wins & moves) return WIN - count(both) - 1;
    if (!depth) return count(wins) - count(winning(other, both));
    int best = -WIN;
    for (int i = 0; i < COLUMNS && best < beta; i++) {
        u64 move = moves & column(CENTRE_FIRST[i]);
        if (!move) continue;
        int value = -look(other, both | move, depth - 1, -beta, -(best > alpha ? best : alpha));
        if (value > best) best = value;
    }
    return best;
}

/* The next number of S. Vigna's splitmix64. */
static u64 chance(u64 *state) {
    u64 z = *state += 0x9E3779B97F4A7C15;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9;
    z = (z ^ z >> 27) * 0x94D049BB133111EB;
    return z ^ z >> 31;
}

/* The column of the best move; of equally good ones, the first in an order that the seed shuffles. */
int alphabeta(u64 own, u64 both, int depth, u64 seed) {
    int order[COLUMNS], best = -WIN - 1, chosen = ILLEGAL;
    for (int x = 0; x < COLUMNS; x++) {
        int at = (int)(chance(&seed) % (x + 1));
        order[x] = order[at];
        order[at] = x;
    }
    u64 wins = winning(own, both);
    for (int i = 0; i < COLUMNS; i++) {
        u64 move = playable(both) & column(order[i]);
        if (!move) continue;
        int value = move & wins ? WIN : -look(own ^ both, both | move, depth - 1, -WIN, -best);
        if (value > best) best = value, chosen = order[i];
    }
    return chosen;
}

void alphabeta_of_many(int64_t boards, const u64 *own, const u64 *both, int depth, const u64 *seed, int8_t *out) {
    for (int64_t i = 0; i < boards; i++) out[i] = (int8_t)alphabeta(own[i], both[i], depth, seed[i]);
}
