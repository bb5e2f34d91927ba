package lab

// KeeperPID is the process that sweeps up after this lab.
func (l *Lab) KeeperPID() int { return l.keeper.Process.Pid }

// HelperPath is the lab's helper in the cache.
func (l *Lab) HelperPath() string { return l.helper }

// RootFSName is the name of the root file system in the cache.
func RootFSName() string { return rootfsName(rootfsArgs()) }

// Cached and ForgetOld open the cache to its tests.
var (
	Cached    = cached
	ForgetOld = forgetOld
)

// Release gives a cache lock back.
func (l *fileLock) Release() error { return l.release() }
