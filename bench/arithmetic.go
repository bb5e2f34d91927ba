package main

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"time"
)

// quantile is the smallest sample that at least the share q of all samples do
// not exceed (nearest rank). It is 0 without samples.
func quantile[T cmp.Ordered](samples []T, q float64) T {
	var zero T
	if len(samples) == 0 {
		return zero
	}
	sorted := slices.Sorted(slices.Values(samples))
	rank := int(math.Ceil(q*float64(len(sorted)))) - 1
	return sorted[min(max(rank, 0), len(sorted)-1)]
}

func median[T cmp.Ordered](samples []T) T { return quantile(samples, 0.5) }

// bucket is one of a histogram: how many samples do not exceed bound.
type bucket struct {
	bound float64
	count uint64
}

// histogram is a Prometheus histogram: cumulative buckets in ascending order,
// the last one unbounded.
type histogram struct {
	buckets []bucket
	sum     float64
	count   uint64
}

// since is what was added to the histogram after before was taken of it.
func (h histogram) since(before histogram) (histogram, error) {
	if len(before.buckets) != 0 && len(before.buckets) != len(h.buckets) || before.count > h.count {
		return histogram{}, fmt.Errorf("compare histograms: %d buckets and %d samples after %d and %d: the daemon began anew",
			len(h.buckets), h.count, len(before.buckets), before.count)
	}
	d := histogram{sum: h.sum - before.sum, count: h.count - before.count, buckets: slices.Clone(h.buckets)}
	for i := range before.buckets {
		d.buckets[i].count -= before.buckets[i].count
	}
	return d, nil
}

// quantile estimates the share q as Prometheus does: linear within the bucket,
// and the greatest finite bound for what lies above it. It is NaN without
// samples.
func (h histogram) quantile(q float64) float64 {
	if h.count == 0 || len(h.buckets) == 0 {
		return math.NaN()
	}
	rank := q * float64(h.count)
	low, below := 0.0, uint64(0)
	for _, b := range h.buckets {
		if float64(b.count) >= rank && b.count > below {
			if math.IsInf(b.bound, 1) {
				return low
			}
			return low + (b.bound-low)*(rank-float64(below))/float64(b.count-below)
		}
		low, below = b.bound, b.count
	}
	return low
}

// mean of the samples in seconds, NaN without any.
func (h histogram) mean() float64 {
	if h.count == 0 {
		return math.NaN()
	}
	return h.sum / float64(h.count)
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
