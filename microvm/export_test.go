package microvm

import "time"

// SetClock makes the Scanner take now for the time.
func (s *Scanner) SetClock(now func() time.Time) { s.now = now }

// SplitRunner is splitRunner, for the fuzzer.
func SplitRunner(name, told string) (hypervisor, hostName string, err error) {
	return splitRunner(name, told)
}
