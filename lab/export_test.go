package lab

// KeeperPID is the process that sweeps up after this lab.
func (l *Lab) KeeperPID() int { return l.keeper.Process.Pid }

// Cached and ForgetOld open the cache to its tests.
var (
	Cached    = cached
	ForgetOld = forgetOld
)

// Release gives a cache lock back.
func (l *fileLock) Release() error { return l.release() }
