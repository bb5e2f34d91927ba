package microvm_test

import (
	"fmt"
	"testing"
)

// BenchmarkScanner_Scan measures a scan per VM: unchanged is what a cycle costs,
// first reads every folder.
func BenchmarkScanner_Scan(b *testing.B) {
	for _, n := range []int{1000, 4000} {
		h := newHost(b)
		for i := range n {
			name := fmt.Sprintf("vm-%d", i)
			runner := h.runner("qemu-"+name, map[string]string{"hypervisor": "qemu\n", "vsock-cid": fmt.Sprintf("%d\n", i+3)})
			h.link(runner, h.state+"/"+name+"/current")
			h.link(runner, h.state+"/"+name+"/booted")
			h.write(h.state+"/"+name+"/flake", "x")
		}
		perVM := func(b *testing.B) {
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*n), "ns/VM")
		}
		b.Run(fmt.Sprintf("unchanged/%d", n), func(b *testing.B) {
			s := h.scanner()
			s.Scan(b.Context())
			b.ReportAllocs()
			for b.Loop() {
				if got := s.Scan(b.Context()); len(got.Definitions) != n {
					b.Fatal(len(got.Definitions))
				}
			}
			perVM(b)
		})
		b.Run(fmt.Sprintf("first/%d", n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if got := h.scanner().Scan(b.Context()); len(got.Definitions) != n {
					b.Fatal(len(got.Definitions))
				}
			}
			perVM(b)
		})
	}
}
