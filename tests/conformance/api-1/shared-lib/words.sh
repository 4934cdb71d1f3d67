said="from the lib"
