package systemd

const (
	// maxWords and maxWord bound what words keeps.
	maxWords = 1024
	maxWord  = 256
	// namesSlack is how many more names may be kept than twice the largest
	// listing had.
	namesSlack = 1024
)

// words shares the strings that many units have in common. What does not fit is
// simply not shared.
type words map[string]string

func (w words) get(b []byte) string {
	if len(b) == 0 {
		return ""
	}
	if s, ok := w[string(b)]; ok {
		return s
	}
	s := string(b)
	if len(w) < maxWords && len(s) <= maxWord {
		w[s] = s
	}
	return s
}

// names shares the names and object paths of units between listings.
type names struct {
	known map[string]nameAndPath
	// largest is the size of the largest listing since known was last emptied.
	largest int
}

type nameAndPath struct{ name, path string }

func (n *names) get(name, path []byte) (string, string) {
	known, ok := n.known[string(name)]
	if ok && known.path == string(path) {
		return known.name, known.path
	}
	known = nameAndPath{string(name), string(path)}
	n.known[known.name] = known
	return known.name, known.path
}

// listed is told the size of each listing, and forgets all names once most are
// of units long gone.
func (n *names) listed(units int) {
	n.largest = max(n.largest, units)
	if len(n.known) > 2*n.largest+namesSlack {
		clear(n.known)
		n.largest = 0
	}
}
