/* The other side of the comparison: DPDK's own guest driver, virtio-user, measured as ours is.
 * Usage: peer [EAL options] -- tx|rx BURST FRAMES
 * Prints the median of the cycles of the time stamp counter that 32 frames took, in full bursts: the scheduler strikes few. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <rte_cycles.h>
#include <rte_eal.h>
#include <rte_ethdev.h>
#include <rte_mbuf.h>

enum { FRAME = 60, SAMPLE = 32, LONGEST = 1 << 16, PATIENCE_SECONDS = 20 };

static const uint8_t frame[FRAME] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 1, 0x88, 0xb5};

/* How many samples took so many cycles. */
static uint64_t samples[LONGEST];

static struct rte_mbuf *made[SAMPLE];

/* One burst of frames out: made, written, queued. Returns how many went. */
static unsigned transmit(struct rte_mempool *pool, unsigned burst)
{
	if (rte_pktmbuf_alloc_bulk(pool, made, burst) != 0)
		return 0;
	for (unsigned i = 0; i < burst; i++)
		memcpy(rte_pktmbuf_append(made[i], FRAME), frame, FRAME);
	unsigned sent = rte_eth_tx_burst(0, 0, made, burst);
	if (sent < burst)
		rte_pktmbuf_free_bulk(made + sent, burst - sent);
	return sent;
}

/* One burst of frames in: taken, copied out as a stack would read them, given back. */
static unsigned receive(unsigned burst)
{
	static uint8_t copy[2048];
	unsigned count = rte_eth_rx_burst(0, 0, made, burst);
	for (unsigned i = 0; i < count; i++)
		memcpy(copy, rte_pktmbuf_mtod(made[i], void *), made[i]->data_len);
	rte_pktmbuf_free_bulk(made, count);
	return count;
}

int main(int argc, char **argv)
{
	int used = rte_eal_init(argc, argv);
	if (used < 0 || argc - used != 4)
		rte_exit(EXIT_FAILURE, "usage: peer [EAL options] -- tx|rx BURST FRAMES\n");
	int sends = strcmp(argv[used + 1], "tx") == 0;
	unsigned burst = atoi(argv[used + 2]);
	uint64_t wanted = strtoull(argv[used + 3], NULL, 10);
	if (burst < 1 || SAMPLE % burst != 0)
		rte_exit(EXIT_FAILURE, "bursts of 1, 2, 4, 8, 16 or %d frames\n", SAMPLE);

	struct rte_mempool *pool = rte_pktmbuf_pool_create("frames", 4095, 256, 0, RTE_MBUF_DEFAULT_BUF_SIZE, SOCKET_ID_ANY);
	struct rte_eth_conf configuration = {0};
	if (pool == NULL || rte_eth_dev_configure(0, 1, 1, &configuration) != 0 ||
	    rte_eth_rx_queue_setup(0, 0, 256, SOCKET_ID_ANY, NULL, pool) != 0 ||
	    rte_eth_tx_queue_setup(0, 0, 256, SOCKET_ID_ANY, NULL) != 0 || rte_eth_dev_start(0) != 0)
		rte_exit(EXIT_FAILURE, "the port does not start\n");

	/* Precise: when all that was done has reached the memory, else who looks at nothing of a frame seems not to wait for it.
	 * A burst that was cut short found the ring full or empty: its cycles are the back end's, and do not count. */
	uint64_t frames = 0, cycles = 0, end = rte_rdtsc() + PATIENCE_SECONDS * rte_get_tsc_hz();
	while (frames < wanted && rte_rdtsc() < end) {
		uint64_t start = rte_rdtsc_precise();
		unsigned count = sends ? transmit(pool, burst) : receive(burst);
		uint64_t took = rte_rdtsc_precise() - start;
		if (count == burst) {
			frames += count;
			cycles += took;
			if (frames % SAMPLE == 0) {
				samples[RTE_MIN(cycles, LONGEST - 1u)]++;
				cycles = 0;
			}
		}
		if (count < burst)
			for (int i = 0; i < 2000; i++)
				rte_pause();
	}
	uint64_t below = 0, median = 0;
	while ((below += samples[median]) * 2 < frames / SAMPLE)
		median++;
	printf("measured %" PRIu64 " cycles a sample\n", median);
	rte_eth_dev_stop(0);
	return frames < wanted;
}
